package intake

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Broadcaster makes a campaign of a submitted message: campaign.Service.
type Broadcaster interface {
	// Broadcast stores the campaign and what is to become durable with it, in one transaction. A refusal is a *mail.Error
	// whose text says what is wrong.
	Broadcast(ctx context.Context, b *Broadcast) error
}

// Broadcast is a message with X-Relay-Campaign: one mail for each recipient is made of it.
type Broadcast struct {
	ID          mail.QueueID // of the campaign
	Account     string
	Name        string
	List        string // X-Relay-List; "": Recipients are those of the session
	ReversePath mail.Path
	Recipients  []mail.Path
	Stream      string // "" for none
	Tags        []string
	SendAt      time.Time     // zero: now
	TTL         time.Duration // 0: the default
	Message     []byte        // header and body, without control fields
	Also        []func(kv.Tx) error
}

const (
	maxCampaignName = 200
	maxCampaignList = 100
	maxBroadcast    = 16 << 20 // octets of body: a template with its images
)

func (t *taking) setCampaign(v string) error {
	v = mail.DecodeText(v)
	if v == "" || len(v) > maxCampaignName || mail.CleanText(v, maxCampaignName) != v {
		return badValue(fmt.Sprintf("give a name of 1 to %d bytes", maxCampaignName))
	}
	if t.in.deps.Broadcaster == nil {
		return badValue("this relay sends no campaigns")
	}
	t.campaign = v
	return nil
}

func (t *taking) setList(v string) error {
	if v == "" || len(v) > maxCampaignList || mail.CleanText(v, maxCampaignList) != v {
		return badValue("give the name of one list")
	}
	t.list = v
	return nil
}

// checkCampaign checks what the control fields say together, and makes the body stay in memory.
func (h *header) checkCampaign() error {
	t := h.taking
	switch {
	case t.campaign == "" && t.list == "":
		return nil
	case t.campaign == "":
		return refuse(554, 6, 0, "Header field X-Relay-List: goes with X-Relay-Campaign")
	case t.sub.Internal:
		return nil
	case t.sub.RequireTLS: // its mails are made later, and would not keep it
		return refuse(554, 7, 30, "Header field X-Relay-Campaign: a campaign cannot keep REQUIRETLS")
	case t.list != "" && (len(t.sub.Recipients) != 1 || t.sub.Recipients[0].To.Key() != h.from.path.Key()):
		return refuse(554, 6, 0, "Header field X-Relay-List: stands in place of recipients; give the From address as the only one")
	}
	if t.key == "" && strings.TrimSpace(h.fields.Get("Message-ID")) != "" {
		t.natural = true // a client that has lost our reply sends the same message again
	}
	return nil
}

// broadcast hands the message on as a campaign, with its idempotency key and what it takes of the quota.
func (t *taking) broadcastTo(ctx context.Context, message []byte) error {
	if t.natural {
		sum := t.fingerprint()
		t.key = "campaign " + hex.EncodeToString(sum[:]) + " " + clip(t.header.fields.Get("Message-ID"))
	}
	b := &Broadcast{
		ID: t.id, Account: t.account, Name: t.campaign, List: t.list, ReversePath: t.sub.ReversePath, Tags: t.tags, SendAt: t.sendAt,
		TTL: t.ttl, Message: message, Also: t.company(),
	}
	if t.header.fields.Count("X-Relay-Stream") > 0 {
		b.Stream = t.stream
	}
	if t.list == "" {
		for _, r := range t.sub.Recipients {
			b.Recipients = append(b.Recipients, r.To)
		}
	}
	return t.in.deps.Broadcaster.Broadcast(ctx, b)
}

// whole joins the header section, as it leaves, and the body.
func (t *taking) whole() ([]byte, error) {
	var b bytes.Buffer
	b.Grow(len(t.header.out) + 2 + int(t.body.Size()))
	b.Write(t.header.out)
	b.WriteString("\r\n")
	if _, err := t.body.WriteTo(&b); err != nil {
		return nil, fmt.Errorf("read message %s: %w", t.id, err)
	}
	return b.Bytes(), nil
}
