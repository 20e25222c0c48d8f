// Package testutil has what tests of several packages need: a programmable MX, a certificate authority, messages.
package testutil
