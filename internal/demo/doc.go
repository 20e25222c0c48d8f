// Package demo is `relayd demo`: the whole journey of a campaign on one machine, with nothing pretended.
//
// It starts its own name server, a catch-all inbox that demands nothing but checks everything, and the daemon, all on
// loopback and in a temporary directory. Then it walks through the doors that a marketer uses:
//
//  1. customers are made up (Customers) and written as a CSV file;
//  2. the sender domain is added over the admin API, which makes the DKIM keys; their records go into the zone;
//  3. a campaign with a picture (Promotion) is created, the CSV file is uploaded, the campaign is started;
//  4. relayd looks up the MX of every customer's domain and delivers to the inbox over STARTTLS;
//  5. the inbox (Inbox) stores each message on disk and verifies its signatures against the zone;
//  6. the summary (Summary) counts what arrived.
//
// The daemon is handed in as a Start function, so that the demo knows it by its public doors alone.
package demo
