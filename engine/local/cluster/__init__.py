"""Services of three machines: a module for each service, PostgreSQL's promoter, and the nodes one by one.

The stack starts and stops them. They import the rest of `local`, but not the stack.
"""
