"""Instruction following: 76 checks by class name, and the share of them that an answer satisfies."""
