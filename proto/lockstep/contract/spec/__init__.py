"""What a job spec may be, read from the options of the contract: for the server at submit, for the client before it.

Knows protobuf and the generated contract, and no part of Lockstep.
"""
