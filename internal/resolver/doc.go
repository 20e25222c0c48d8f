// Package resolver answers the questions of the mail world from the DNS: where a domain's mail goes, which addresses a
// host has, what a name's TXT records say. It is the only user of miekg/dns.
//
// What it promises: every query is bounded in time and size; an answer is taken only when its identifier and question
// match what was asked (RFC 5452 section 9.1); NXDOMAIN, "no such record" and "could not be found out" are three
// different answers; answers are kept for their TTL within bounds, and one look-up serves all who ask at the same time.
package resolver
