"""How journals of earlier versions become those of this one; read by alembic."""
