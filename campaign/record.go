package campaign

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"relayd/internal/api"
	"relayd/internal/kv"
	"relayd/internal/mail"
)

// Tables. A campaign is its message's queue ID (12 bytes) in all keys.
const (
	tableCampaign  kv.Table = "campaign"           // id → what is asked about often: name, state, times
	tableContent   kv.Table = "campaign_content"   // id, chunk (4 bytes) → the request as JSON, in pieces
	tableAccount   kv.Table = "campaign_account"   // account, NUL, id → nothing: listings
	tableActive    kv.Table = "campaign_active"    // id → nothing: campaigns with work left for Run
	tableRecipient kv.Table = "campaign_recipient" // id, N (8 bytes) → recipients that are not queued yet
	tableCount     kv.Table = "campaign_count"     // id, node → counters of that node
)

// The states of a campaign, as the API names them.
const (
	Draft                 = "draft"
	Preparing             = "preparing"
	Running               = "running"
	Paused                = "paused"
	Cancelling            = "cancelling"
	Cancelled             = "cancelled"
	Completed             = "completed"
	CompletedWithFailures = "completed_with_failures"
	Failed                = "failed"
)

// record is the row of one campaign. It is small: the content lies beside it.
type record struct {
	ID        mail.QueueID       `json:"-"`
	Account   string             `json:"account"`
	Name      string             `json:"name"`
	From      api.Mailbox        `json:"from"`
	Subject   string             `json:"subject"`
	Stream    string             `json:"stream"`
	State     string             `json:"state"`
	Reason    string             `json:"reason,omitempty"`
	Tags      map[string]string  `json:"tags,omitempty"`
	Variables []string           `json:"variables,omitempty"`
	Warnings  []api.Warning      `json:"warnings,omitempty"`
	Reverse   mail.Path          `json:"reverse"`
	TTL       time.Duration      `json:"ttl"`
	Retry     *api.CampaignRetry `json:"retry,omitempty"`
	Created   time.Time          `json:"created"`
	Started   time.Time          `json:"started,omitzero"`
	Finished  time.Time          `json:"finished,omitzero"`
	Queued    bool               `json:"queued,omitempty"` // every recipient has its envelope
	Chunks    int                `json:"chunks"`
}

// ended tells states that a campaign does not leave.
func ended(state string) bool {
	switch state {
	case Cancelled, Completed, CompletedWithFailures, Failed:
		return true
	}
	return false
}

const (
	recordVersion = 1
	chunkSize     = 512 << 10
	idPrefix      = "cmp_"
)

// formatID is the campaign's name in the API: its message's queue ID behind a prefix.
func formatID(id mail.QueueID) string { return idPrefix + id.String() }

func parseID(s string) (mail.QueueID, error) {
	rest, ok := strings.CutPrefix(s, idPrefix)
	id, err := mail.ParseQueueID(rest)
	if !ok || err != nil {
		return mail.QueueID{}, ErrNotFound
	}
	return id, nil
}

func (r *record) encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("encode campaign: %w", err)
	}
	return append([]byte{recordVersion}, b...), nil
}

func decodeRecord(id mail.QueueID, b []byte) (*record, error) {
	if len(b) == 0 || b[0] != recordVersion {
		return nil, fmt.Errorf("%w: unknown version", errBadRecord)
	}
	r := &record{ID: id}
	if err := json.Unmarshal(b[1:], r); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRecord, err)
	}
	return r, nil
}

func getRecord(tx kv.Tx, id mail.QueueID) (*record, error) {
	b, err := tx.Get(tableCampaign, id[:])
	if err != nil {
		return nil, fmt.Errorf("read campaign: %w", err)
	}
	if b == nil {
		return nil, ErrNotFound
	}
	return decodeRecord(id, b)
}

// put writes the row, and keeps the index of campaigns with work left.
func (r *record) put(tx kv.Tx) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	id := append([]byte(nil), r.ID[:]...)
	if err := tx.Put(tableCampaign, id, b); err != nil {
		return fmt.Errorf("write campaign: %w", err)
	}
	if r.State == Draft || ended(r.State) {
		return tx.Delete(tableActive, id)
	}
	return tx.Put(tableActive, id, []byte{recordVersion})
}

// putContent writes the request in pieces and returns how many.
func putContent(tx kv.Tx, id mail.QueueID, b []byte) (int, error) {
	n := 0
	for ; len(b) > 0; n++ {
		size := min(len(b), chunkSize)
		if err := tx.Put(tableContent, contentKey(id, n), b[:size]); err != nil {
			return n, fmt.Errorf("write campaign content: %w", err)
		}
		b = b[size:]
	}
	return n, nil
}

func contentKey(id mail.QueueID, n int) []byte {
	return binary.BigEndian.AppendUint32(append([]byte(nil), id[:]...), uint32(n)) //nolint:gosec // bounded by the size of a request
}

func getContent(tx kv.Tx, r *record) (*api.CreateCampaign, error) {
	var all []byte
	for n := range r.Chunks {
		b, err := tx.Get(tableContent, contentKey(r.ID, n))
		if err != nil {
			return nil, fmt.Errorf("read campaign content: %w", err)
		}
		if b == nil {
			return nil, fmt.Errorf("%w: content of %s lacks piece %d", errBadRecord, formatID(r.ID), n)
		}
		all = append(all, b...)
	}
	return decodeContent(all)
}

// encodeContent keeps all of a request but its recipients.
func encodeContent(req *api.CreateCampaign) ([]byte, error) {
	kept := *req
	kept.Recipients, kept.Start = nil, false
	b, err := json.Marshal(&kept)
	if err != nil {
		return nil, fmt.Errorf("encode campaign content: %w", err)
	}
	return append([]byte{recordVersion}, b...), nil
}

func decodeContent(b []byte) (*api.CreateCampaign, error) {
	if len(b) == 0 || b[0] != recordVersion {
		return nil, fmt.Errorf("%w: unknown version of content", errBadRecord)
	}
	req := new(api.CreateCampaign)
	d := json.NewDecoder(strings.NewReader(string(b[1:])))
	d.UseNumber()
	if err := d.Decode(req); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRecord, err)
	}
	return req, nil
}

func (r *record) api(total int64) api.Campaign {
	return api.Campaign{
		ID: formatID(r.ID), Account: r.Account, Name: r.Name, State: r.State, Reason: r.Reason, From: r.From,
		Subject: r.Subject, Stream: r.Stream, Total: total, VariablesUsed: r.Variables, Warnings: r.Warnings, Tags: r.Tags,
		CreatedAt: r.Created, StartedAt: r.Started, FinishedAt: r.Finished,
	}
}
