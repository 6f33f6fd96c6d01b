"""``python -m numformer``."""

from numformer.cli import main

if __name__ == "__main__":
    main()
