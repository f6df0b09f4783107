"""Where `dg scaffold defs` puts components; pipelines of the catalog need nothing here."""
