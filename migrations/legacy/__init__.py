"""The road from the multi-user system to organizations: one, for a database adopted in place and for a file imported.

Both first put the old rows into the tables of `staging`: an adoption moves the four tables there as they are, an import
loads text. `road.travel` does the rest inside the caller's transaction: it sorts out what no foreign key could hold,
builds the schema at revision 0001, fills it, upgrades to head through the promised phases, and converts credentials,
workflows and logs. Whoever rolls the transaction back has changed nothing.
"""
