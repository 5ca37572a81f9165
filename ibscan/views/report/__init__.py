"""A report: one page of HTML that shows results in a browser, without a network.

`drawing` turns pictures of `ibscan.views.figures` into data, `grids` tables into rows; `page` puts both into
`report.html`, with `report.css`, `report.js` and Plotly, which draws the data where the page is read.
"""
