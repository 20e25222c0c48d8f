package campaign

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strconv"
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
	tableLater     kv.Table = "campaign_later"     // id, Unix seconds (8 bytes), N → nothing: those of them with a time of their own
	tableFailed    kv.Table = "campaign_failed"    // id, N → recipients that may be retried: those that we failed
	tableRetried   kv.Table = "campaign_retried"   // id, N → nothing: envelopes whose recipient got another one
	tableCount     kv.Table = "campaign_count"     // id, node → counters of that node
	tableRules     kv.Table = "campaign_rules"     // account → what the law asks of its campaigns
)

// The states of a campaign, as the API names them.
const (
	Draft                 = "draft"
	Scheduled             = "scheduled"
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
	Detail    string             `json:"detail,omitempty"` // of the reason
	Tags      map[string]string  `json:"tags,omitempty"`
	Variables []string           `json:"variables,omitempty"`
	Warnings  []api.Warning      `json:"warnings,omitempty"`
	Reverse   mail.Path          `json:"reverse"`
	Revision  int64              `json:"revision,omitempty"` // rises with each change: the ETag
	Audience  *api.Audience      `json:"audience,omitempty"`
	Send      api.CampaignSend   `json:"send"`
	Guards    api.CampaignGuards `json:"guards"`
	Schedule  *schedule          `json:"schedule,omitempty"`
	Rules     *rules             `json:"rules,omitempty"` // of the account, as they were at the start
	Created   time.Time          `json:"created"`
	Started   time.Time          `json:"started,omitzero"`
	Finished  time.Time          `json:"finished,omitzero"`
	Members   *members           `json:"members,omitempty"` // the audience's lists
	Cut       time.Time          `json:"cut,omitzero"`      // who joins the audience later is left out
	Taken     []byte             `json:"taken,omitempty"`   // the last contact that was taken over
	Ready     bool               `json:"ready,omitempty"`   // all of it has been
	Placed    bool               `json:"placed,omitempty"`  // every recipient has its envelope or its time
	Queued    bool               `json:"queued,omitempty"`  // every recipient has its envelope
	Again     time.Time          `json:"again,omitzero"`    // of the last retry-failed
	Retries   int                `json:"retries,omitempty"`
	Retrying  bool               `json:"retrying,omitempty"` // those whom we failed are being taken back
	Chunks    int                `json:"chunks"`
}

// first is the record of version 1, whose retry policy and lifetime stood beside the rest.
type first struct {
	TTL   time.Duration      `json:"ttl"`
	Retry *api.CampaignRetry `json:"retry"`
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
	recordVersion = 1 // of all records but the campaign's own row and the counters
	rowVersion    = 2
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
	return append([]byte{rowVersion}, b...), nil
}

func decodeRecord(id mail.QueueID, b []byte) (*record, error) {
	if len(b) == 0 || b[0] != rowVersion && b[0] != recordVersion {
		return nil, fmt.Errorf("%w: unknown version", errBadRecord)
	}
	r := &record{ID: id}
	if err := json.Unmarshal(b[1:], r); err != nil {
		return nil, fmt.Errorf("%w: %w", errBadRecord, err)
	}
	if b[0] == recordVersion {
		var old first
		if err := json.Unmarshal(b[1:], &old); err != nil {
			return nil, fmt.Errorf("%w: %w", errBadRecord, err)
		}
		r.Send.TTLSeconds, r.Send.Retry, r.Placed = int64(old.TTL/time.Second), old.Retry, r.Queued
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

// put writes the row, one revision later, and keeps the index of campaigns with work left.
func (r *record) put(tx kv.Tx) error {
	r.Revision++
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
	kept.Recipients, kept.Start, kept.Audience = nil, false, nil // in the row, where they can change
	kept.Send, kept.Guards, kept.Retry, kept.TTLSeconds = api.CampaignSend{}, api.CampaignGuards{}, nil, 0
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
		ID: formatID(r.ID), Account: r.Account, Name: r.Name, State: r.State, Reason: r.Reason, Detail: r.Detail, From: r.From,
		Subject: r.Subject, Stream: r.Stream, Total: total, VariablesUsed: r.Variables, Warnings: r.Warnings, Tags: r.Tags,
		Audience: r.Audience, Send: r.Send, Guards: r.Guards, Schedule: r.Schedule.api(), ETag: r.etag(),
		CreatedAt: r.Created, StartedAt: r.Started, FinishedAt: r.Finished,
	}
}

// etag names the row's revision (RFC 9110 section 8.8.3).
func (r *record) etag() string { return fmt.Sprintf("%q", strconv.FormatInt(r.Revision, 10)) }
