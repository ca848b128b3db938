"""How the books' tables came to be as they are: Alembic's revisions, and what runs them (`env.py`)."""
