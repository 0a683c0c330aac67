"""The laboratory: which rule, teacher or option trains the better retriever, with an interval.

A *grid* is a table of runs: data sets × rules × teachers × … × seeds. Each *cell* is one run of the
pipeline with some values of its config changed. Cells of one data set share embeddings and
candidates; cells that are finished are kept; the others run side by side, one process per device.

    grid.py        what a grid is, and its cells
    sets.py        a data set made fit: one positive left visible, the others hidden and known
    shared.py      what cells of one data set share
    cell.py        one cell: the pipeline's stages, then what is read from its workdir
    workers.py     processes, each with a device, that run cells
    results.py     one long CSV of all cells
    bootstrap.py   intervals over queries and seeds
    page.py        tables and charts for docs
"""
