"""Tests of cyclip_ext.data: every format from files made on the spot, and the in-memory sets."""
