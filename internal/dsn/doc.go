// Package dsn composes delivery status notifications (RFC 3464): what relayd tells the sender of a message that could
// not be delivered. It does no I/O and decides nothing; whether a notice may be sent is the caller's to know.
package dsn
