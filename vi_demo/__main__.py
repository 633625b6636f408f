"""`python -m vi_demo` is `vi-demo`."""

from vi_demo.cli import main

main()
