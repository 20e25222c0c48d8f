// Package mail holds the words of the mail world that every other package speaks: paths, replies, enhanced
// status codes, header fields and queue IDs. It imports nothing of relayd and does no I/O but for
// key files.
package mail
