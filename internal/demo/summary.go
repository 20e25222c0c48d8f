package demo

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Summary is what the demo found out; with Options.JSON it is printed as one object.
type Summary struct {
	Recipients        int     `json:"recipients"`          // subscribed customers: messages to deliver
	Unsubscribed      int     `json:"unsubscribed"`        // customers of the file who had opted out
	Delivered         int     `json:"delivered"`           // recipients whose message is in the inbox
	Duplicates        int     `json:"duplicates"`          // messages beyond one per recipient
	DKIMVerified      int     `json:"dkim_verified"`       // recipients whose message has a valid RSA and a valid Ed25519 signature
	TLS               int     `json:"tls"`                 // messages that came over STARTTLS
	MessageBytes      int64   `json:"message_bytes"`       // octets of the smallest message that arrived
	ElapsedSeconds    float64 `json:"elapsed_seconds"`     // from the campaign's start to the last message verified
	MessagesPerSecond float64 `json:"messages_per_second"` // DKIMVerified / ElapsedSeconds
	PeakRSSBytes      int64   `json:"peak_rss_bytes"`      // of the whole process, daemon and inbox; 0 where the system does not tell
	Campaign          string  `json:"campaign"`            // its ID
	CampaignState     string  `json:"campaign_state"`      // as relayd's own books say
	CampaignDelivered int64   `json:"campaign_delivered"`  // as relayd's own books say
	UnsubscribeURL    string  `json:"unsubscribe_url"`     // of one of the messages
	InboxURL          string  `json:"inbox_url"`           // gone after Options.Exit, as the next two
	AdminURL          string  `json:"admin_url"`
	Socket            string  `json:"socket"` // for relayctl --socket
	OK                bool    `json:"ok"`     // Recipients = Delivered = DKIMVerified, nobody else got anything, the books agree
}

// text is the summary for people.
func (s Summary) text(exit bool) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-14s "+format+"\n", append([]any{name}, args...)...)
	}
	b.WriteString("\n")
	line("delivered", "%d of %d, %d over STARTTLS, %d octets each", s.Delivered, s.Recipients, s.TLS, s.MessageBytes)
	line("signatures", "%d of %d with both verified (RSA and Ed25519)", s.DKIMVerified, s.Recipients)
	line("unsubscribed", "%d customers had opted out and got nothing", s.Unsubscribed)
	line("elapsed", "%.2f s, %.0f messages/s", s.ElapsedSeconds, s.MessagesPerSecond)
	line("peak memory", "%d MB, daemon and inbox together", s.PeakRSSBytes/1e6)
	if s.Duplicates > 0 {
		line("duplicates", "%d", s.Duplicates)
	}
	if !s.OK {
		line("campaign", "%s, %d delivered in its own books", s.CampaignState, s.CampaignDelivered)
		b.WriteString("\nNot everything was delivered and verified.\n")
	}
	if exit {
		return b.String()
	}
	ctl := relayctl() + " --socket " + s.Socket
	b.WriteString("\nTry next:\n")
	line("inbox", "%s", s.InboxURL)
	line("unsubscribe", "%s", s.UnsubscribeURL)
	line("progress", "%s campaign show %s", ctl, s.Campaign)
	line("results", "%s campaign recipients %s --limit 10", ctl, s.Campaign)
	line("queue", "%s queue stats", ctl)
	b.WriteString("\nCtrl-C ends the demo and removes all of it.\n")
	return b.String()
}

// relayctl is the command to type: the program beside this one where there is one.
func relayctl() string {
	if self, err := os.Executable(); err == nil {
		path := filepath.Join(filepath.Dir(self), "relayctl")
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			if wd, err := os.Getwd(); err == nil {
				if rel, err := filepath.Rel(wd, path); err == nil && len(rel) < len(path) && !strings.HasPrefix(rel, "..") {
					return "." + string(filepath.Separator) + rel
				}
			}
			return path
		}
	}
	return "relayctl"
}
