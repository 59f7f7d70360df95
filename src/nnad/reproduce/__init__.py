"""The tables and figures of DN2 and k-NNN, one command each: `nnad reproduce`.

| module       | what                                                                          |
|--------------|-------------------------------------------------------------------------------|
| `tables`     | what a table, an entry of it and a cell are                                   |
| `dn2`, `knnn`| the papers' tables, with the papers' numbers                                  |
| `data`       | the data sets, and where they are                                             |
| `features`   | their features, on disk                                                       |
| `trained`    | systems that learn: PANDA, MSAD, OC-SVM, Deep SVDD, GEOM, GOAD, MHRot         |
| `compute`    | a cell -> the scores of its test images                                       |
| `workers`    | cells in several processes                                                    |
| `keys`       | what a cell depends on, as a key                                              |
| `store`      | all cells that were computed: one CSV file, and their scores                  |
| `statistics` | bootstrap intervals, and a paired test across classes                         |
| `settings`   | what a run is asked, and what came of it                                      |
| `run`        | what is missing is computed, in parallel; then the table is written           |
| `told`       | a table as Markdown                                                           |
| `figures`    | pictures                                                                      |

docs/papers.md maps every table and figure to its command.
"""
