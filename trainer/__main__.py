"""`python -m trainer` and `deepspeed --module trainer`."""

from trainer.cli import main

main()
