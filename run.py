"""Start the program from a checkout: ``python run.py --help``. The same as ``python -m faceattr_lightning``."""

from faceattr_lightning.__main__ import main

if __name__ == "__main__":
    main()
