package spool_test

func crashChild() {}
