// Package smtpd is the SMTP front door: our own session engine, which takes mail from applications that authenticate
// (submission, RFC 6409) and bounces, complaints and unsubscribe mail for addresses that relayd has issued (inbound).
//
// What a session goes through:
//
//  1. Server.admit counts the connection, by address and in all; one too many gets 421.
//  2. session.handshake begins TLS where the listener is implicit (RFC 8314); session.greet sends the banner. Who
//     talked before it is cut.
//  3. session.hello answers EHLO with what is offered (RFC 5321 section 4.1.1.1).
//  4. session.startTLS forgets all that was said and drops what came behind the command in plain text (RFC 3207).
//  5. session.auth checks a password by PLAIN, LOGIN or SCRAM, or a token, under TLS only (RFC 4954).
//  6. session.mail and session.rcpt gather a transaction; the listener's policy decides (submission.go, inbound.go).
//  7. session.data, or session.bdat chunk by chunk, reads one message: dataReader finds its end and refuses a bare CR or LF; Accepter stores it. 250 is
//     said after that, with the queue ID.
//  8. Server.Shutdown ends a session between two transactions with 421.
//
// The states, with the commands that lead on; every other command gets 503 and changes nothing:
//
//	                 ┌──────────────────────────────────────────────┐
//	                 │ STARTTLS: TLS, all forgotten                 │
//	                 ▼                                              │
//	connect ──▶ GREETED ── EHLO/HELO ──▶ READY ─────────────────────┘
//	                                      │  ▲
//	                                 AUTH │  │ RSET, EHLO, end of DATA, any refusal of a message
//	                                      ▼  │
//	                               AUTHENTICATED ── MAIL ──▶ MAIL ── RCPT ──▶ RCPT ── DATA ──▶ message ─┐
//	                                      ▲                            └─RCPT─┘                         │
//	                                      └─────────────────────────────────────────────────────────────┘
//
// Framing (wire.go, data.go): lines end in CRLF, a message ends in CRLF "." CRLF, and in nothing else. A bare LF in a
// command ends the session, a bare CR in one gets 500; either in a message refuses the message after its real end. What
// belongs to a message is never taken for a command: its rest is read over, or the session ends. Replies wait while
// there is pipelined input (RFC 2920). Each read and write has a deadline, each list and each buffer a bound.
//
// Spoken: RFC 5321 (SMTP), 6409 (submission), 1870 (SIZE), 2920 (PIPELINING), 2034 and 3463 (ENHANCEDSTATUSCODES),
// 3030 (CHUNKING), 3207 (STARTTLS), 3461 (DSN), 4954 (AUTH), 6152 (8BITMIME), 3848 (transmission types), 8314 (implicit TLS),
// 4865 (FUTURERELEASE), 5802 and 7677 (SCRAM), 6531 (SMTPUTF8), 7628 (OAUTHBEARER), 8689 (REQUIRETLS), 9422 (LIMITS).
package smtpd
