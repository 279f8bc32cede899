"""The verbs of the command line: one module each, with `main(arguments) -> exit code`; its docstring's first line is its help."""
