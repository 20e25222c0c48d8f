// Package e2e tests the real binaries through their public doors only: SMTP, HTTP, commands and signals. Each test runs
// its own relayd in a temporary directory, with a DNS server on loopback whose default answer is NXDOMAIN, and MX hosts
// that it can program. One file per promise.
//
// With RELAYD_E2E=full the clients and verifiers of other people must be there (swaks, Python, dkimverify,
// opendkim-testmsg): a missing one fails its test. Without it their tests are skipped, so that `make test` needs nothing
// but Go. With RELAYD_E2E=off none of them runs: .ci/run has them once, whole, at the end.
package e2e
