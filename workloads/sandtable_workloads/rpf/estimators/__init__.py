"""The models of the family as estimators, and how they are fitted."""
