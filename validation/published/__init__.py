"""Published throughputs of others: predicted from machines whose few unknown rates are fitted to some of the rows."""
