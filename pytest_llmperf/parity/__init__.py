"""Parity: are the tokens ones that the reference could have chosen?"""
