"""Many runs that prove one thing: every fault on every component, every deliberate bug found."""
