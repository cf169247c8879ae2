"""Negative log-likelihood of held-out human answers: is the policy better?"""
