"""The optimizer: what each accelerator can do and what is asked for, from events; where the work belongs, as plans."""
