"""What got slower: profiles of a case, their difference, and the sentences that say it. Pure."""
