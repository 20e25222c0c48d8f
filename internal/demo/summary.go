package demo

// Summary is what the demo found out; with Options.JSON it is printed as one object.
type Summary struct {
	Recipients        int     `json:"recipients"`          // subscribed customers: messages to deliver
	Unsubscribed      int     `json:"unsubscribed"`        // customers of the file who had opted out and got nothing
	Delivered         int     `json:"delivered"`           // recipients whose message is in the inbox
	Duplicates        int     `json:"duplicates"`          // messages beyond one per recipient
	DKIMVerified      int     `json:"dkim_verified"`       // recipients whose message has a valid RSA and a valid Ed25519 signature
	TLS               int     `json:"tls"`                 // messages that came over STARTTLS
	MessageBytes      int64   `json:"message_bytes"`       // octets of the smallest message that arrived
	ElapsedSeconds    float64 `json:"elapsed_seconds"`     // from the campaign's start to the last message verified
	MessagesPerSecond float64 `json:"messages_per_second"` // DKIMVerified / ElapsedSeconds
	PeakRSSBytes      int64   `json:"peak_rss_bytes"`      // of the whole process, daemon and inbox; 0 where the system does not tell
	Campaign          string  `json:"campaign"`            // its ID
	InboxURL          string  `json:"inbox_url,omitempty"` // gone after Options.Exit
	UnsubscribeURL    string  `json:"unsubscribe_url"`     // of one of the messages
	Socket            string  `json:"socket,omitempty"`    // for relayctl --socket
	OK                bool    `json:"ok"`                  // Recipients = Delivered = DKIMVerified, nobody else got anything
}
