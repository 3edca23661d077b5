"""`python -m onnxpress`: the same as the command `onnxpress`."""

from onnxpress.cli import main

if __name__ == "__main__":
    main()
