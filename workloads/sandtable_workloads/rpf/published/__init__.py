"""What is said of recurrent Poisson factorization, beside what was found here."""
