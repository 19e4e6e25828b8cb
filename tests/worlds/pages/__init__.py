"""What the pages tell a reader to type: found (`typed`), made small (`reducing`), given what it takes for granted
(`taken_for_granted`) and run (`stage`). In goes a page's text, out come its steps in order, and what became of each."""
