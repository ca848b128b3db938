"""The books on disk. `database` opens them, `books` writes, `questions` reads; SQLAlchemy is imported here only."""
