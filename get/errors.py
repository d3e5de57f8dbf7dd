"""The one exception that means "your input, not our bug".

Everything checked at a border (command line, config, file, public function) raises it with a
whole sentence: what was expected, what was found, what to do. The scripts of `pipeline/` print
that sentence alone and exit with code 2; every other exception keeps its traceback.
"""


class InputError(ValueError):
    """Bad input from outside; the message is complete and meant for the user."""
