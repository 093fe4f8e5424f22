"""Facts and words of both sides of the contract, written by hand.

Nothing here imports anything of Lockstep, but `spec/` the generated contract.
"""
