"Interactive pages"
