"""Prepares tables and archives of any size in flat memory."""
