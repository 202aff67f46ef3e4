"""Payment: the gateway protocol and its adapters. Imported by fulfilment and the simulation."""
