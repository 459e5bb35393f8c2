"""What an experiment found, as one self-contained HTML file, as JSON for programs, as text, and as files for a paper.

A report is made of facts that somebody else gathered (`Report`): nothing here reads a store, trains or judges, and
nothing imports PyTorch. The page opens offline, asks for nothing, runs only the two scripts whose hashes its own
security policy names, and works without them. The same facts give the same bytes.
"""

from landscope.report.curves import density_figure, spectrum_figure
from landscope.report.effects import forest
from landscope.report.exports import export, to_csv, to_latex, verdict_table, write_figure, write_table
from landscope.report.facts import Report, to_json
from landscope.report.held import EQUAL, QUANTITIES, Held, held_equal
from landscope.report.markup import TABLE_ROWS, data_table
from landscope.report.network import measures_html
from landscope.report.page import headline, to_html
from landscope.report.ranking import ranking_html
from landscope.report.record import to_markdown
from landscope.report.texts import compact

__all__ = [
    "EQUAL",
    "QUANTITIES",
    "TABLE_ROWS",
    "Held",
    "Report",
    "compact",
    "data_table",
    "density_figure",
    "export",
    "forest",
    "headline",
    "held_equal",
    "measures_html",
    "ranking_html",
    "spectrum_figure",
    "to_csv",
    "to_html",
    "to_json",
    "to_latex",
    "to_markdown",
    "verdict_table",
    "write_figure",
    "write_table",
]
