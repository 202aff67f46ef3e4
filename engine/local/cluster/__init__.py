"""Services of three machines: one module for each service, the promoter of PostgreSQL, and the nodes one by one.

The stack above starts and stops them; it imports the rest of `local`.
"""
