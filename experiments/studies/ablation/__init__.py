"""Which constants of the default matter?"""
