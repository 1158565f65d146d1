"""One file a question that is asked of a history. All are pure: values in, one ``Result`` out; no files, no nodes."""
