"""What each stage reaches, beside what the machine allows: `showtell bench`."""
