package campaign

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"relayd/internal/api"
	"relayd/spool"
)

// draftOf makes a draft with n recipients, and with what change does to the request.
func (r *rig) draftOf(n int, change ...func(*api.CreateCampaign)) api.Campaign {
	req := request(many(n)...)
	req.Start = false
	for _, fn := range change {
		fn(req)
	}
	c, err := r.Create(r.t.Context(), "default", req)
	require.NoError(r.t, err)
	return c
}

func TestScheduledCampaignStartsAtItsTime(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := r.draftOf(3)
	c, err := r.Schedule(ctx, "default", c.ID, &api.CampaignSchedule{SendAt: r.now().Add(time.Hour)})
	require.NoError(t, err)
	require.Equal(t, Scheduled, c.State)
	r.round(ctx)
	r.pass(59 * time.Minute)
	r.round(ctx)
	require.Equal(t, Scheduled, r.progress(c.ID).State)
	r.reopen() // a schedule holds over a restart
	r.pass(time.Minute)
	r.waitFor(c.ID, Running)
	r.fan()
	require.Equal(t, 3, r.deliver(10, delivered))
	require.Equal(t, Completed, r.progress(c.ID).State)
}

func TestUnscheduleMakesADraftAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := r.draftOf(1)
	_, err := r.Schedule(ctx, "default", c.ID, &api.CampaignSchedule{SendAt: r.now().Add(time.Hour)})
	require.NoError(t, err)
	c, err = r.Unschedule(ctx, "default", c.ID)
	require.NoError(t, err)
	require.Equal(t, Draft, c.State)
	require.Nil(t, c.Schedule)
	r.pass(2 * time.Hour)
	r.round(ctx)
	require.Equal(t, Draft, r.progress(c.ID).State)
}

func TestScheduleRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c := r.draftOf(1)
	for name, one := range map[string]struct {
		in      api.CampaignSchedule
		pointer string
	}{
		"nothing":        {api.CampaignSchedule{}, "/send_at"},
		"the_past":       {api.CampaignSchedule{SendAt: r.now().Add(-time.Minute)}, "/send_at"},
		"far_future":     {api.CampaignSchedule{SendAt: r.now().Add(400 * 24 * time.Hour)}, "/send_at"},
		"both":           {api.CampaignSchedule{SendAt: r.now().Add(time.Hour), SendAtLocal: "2026-11-27T09:00", FallbackTimezone: "UTC"}, "/send_at_local"},
		"local_no_zone":  {api.CampaignSchedule{SendAtLocal: "2026-11-27T09:00"}, "/fallback_timezone"},
		"local_bad_zone": {api.CampaignSchedule{SendAtLocal: "2026-11-27T09:00", FallbackTimezone: "Mars/Olympus"}, "/fallback_timezone"},
		"zone_is_a_path": {api.CampaignSchedule{SendAtLocal: "2026-11-27T09:00", FallbackTimezone: "../../etc/passwd"}, "/fallback_timezone"},
		"local_with_z":   {api.CampaignSchedule{SendAtLocal: "2026-11-27T09:00Z", FallbackTimezone: "UTC"}, "/send_at_local"},
		"local_past":     {api.CampaignSchedule{SendAtLocal: "2026-11-01T09:00", FallbackTimezone: "UTC"}, "/send_at_local"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.Schedule(t.Context(), "default", c.ID, &one.in)
			requireInvalid(t, err, api.CodeInvalidParameter, one.pointer)
			require.Equal(t, Draft, r.progress(c.ID).State)
		})
	}
}

// Complaint 6: a machine that was down, or a copy of it, does not send hours later by itself.
func TestLateScheduleWaitsForAPerson(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := r.draftOf(2)
	_, err := r.Schedule(ctx, "default", c.ID, &api.CampaignSchedule{SendAt: r.now().Add(time.Hour)})
	require.NoError(t, err)
	r.reopen()
	r.pass(2*time.Hour + time.Second)
	r.round(ctx)
	p := r.progress(c.ID)
	require.Equal(t, Paused, p.State)
	require.Equal(t, "misfire", p.Reason)
	require.Contains(t, p.Detail, "misfire_grace_seconds")
	r.fan()
	require.Zero(t, r.deliver(10, delivered))

	_, err = r.Resume(ctx, "default", c.ID)
	require.NoError(t, err)
	r.waitFor(c.ID, Running)
	r.fan()
	require.Equal(t, 2, r.deliver(10, delivered))
}

func TestCancelWorksInEveryStateThatIsNoEnd(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	schedule := &api.CampaignSchedule{SendAt: r.now().Add(time.Hour)}
	for name, bring := range map[string]func(id string){
		Draft:     func(string) {},
		Scheduled: func(id string) { _, _ = r.Schedule(ctx, "default", id, schedule) },
		Running:   func(id string) { _, _ = r.Start(ctx, "default", id) },
		Paused: func(id string) {
			_, _ = r.Start(ctx, "default", id)
			_, _ = r.Pause(ctx, "default", id)
		},
	} {
		c := r.draftOf(3)
		bring(c.ID)
		require.Equal(t, name, r.progress(c.ID).State)
		_, err := r.Cancel(ctx, "default", c.ID)
		require.NoError(t, err, name)
		r.round(ctx)
		p := r.progress(c.ID)
		require.Equal(t, Cancelled, p.State, name)
		require.Equal(t, int64(3), p.Counts.Cancelled, name)
	}
}

func TestEachRecipientGetsItAtTheirLocalTime(t *testing.T) {
	t.Parallel()
	r := newRig(t) // it is 2026-11-20 09:00 UTC
	ctx := t.Context()
	req := request(
		api.Recipient{Email: "seoul@a.example", Attributes: map[string]any{"Name": "S", "timezone": "Asia/Seoul"}},
		api.Recipient{Email: "paris@a.example", Attributes: map[string]any{"Name": "P", "timezone": "Europe/Paris"}},
		api.Recipient{Email: "york@a.example", Attributes: map[string]any{"Name": "Y", "timezone": "America/New_York"}},
		api.Recipient{Email: "offset@a.example", Attributes: map[string]any{"Name": "O", "timezone": "+03:00"}},
		api.Recipient{Email: "unknown@a.example", Attributes: map[string]any{"Name": "U", "timezone": "Nowhere/Land"}},
		api.Recipient{Email: "none@a.example", Attributes: map[string]any{"Name": "N"}},
	)
	req.Start = false
	c, err := r.Create(ctx, "default", req)
	require.NoError(t, err)
	_, err = r.Schedule(ctx, "default", c.ID, &api.CampaignSchedule{SendAtLocal: "2026-11-21T09:00", FallbackTimezone: "Asia/Seoul"})
	require.NoError(t, err)
	got := map[string]string{}
	for range 30 {
		r.fan()
		if r.progress(c.ID).State == Running && r.now().Minute() == 30 {
			r.reopen() // where it is in the plan is not forgotten
		}
		r.deliver(10, func(msg []byte, e *spool.Envelope) spool.Result {
			got[e.To.Local] = r.now().Format("15:04")
			return delivered(msg, e)
		})
		r.pass(time.Hour)
	}
	require.Equal(t, map[string]string{
		"seoul": "00:00", "unknown": "00:00", "none": "00:00", "offset": "06:00", "paris": "08:00", "york": "14:00",
	}, got)
	require.Equal(t, Completed, r.progress(c.ID).State)
}

func TestSpreadOverHoursIsEvenAndSurvivesARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const total = 400
	c := r.draftOf(total, func(req *api.CreateCampaign) { req.Send.SpreadSeconds = 4 * 3600 })
	_, err := r.Start(t.Context(), "default", c.ID)
	require.NoError(t, err)
	sum := 0
	for hour := range 4 {
		n := 0
		for range 6 {
			r.pass(10 * time.Minute)
			r.fan()
			n += r.deliver(1000, delivered)
		}
		r.reopen()
		require.InDelta(t, total/4, n, 40, "hour %d", hour)
		sum += n
		require.Equal(t, int64(total-sum), r.progress(c.ID).Counts.Pending)
	}
	r.pass(time.Minute)
	r.fan()
	require.Equal(t, total, sum+r.deliver(1000, delivered))
	require.Equal(t, Completed, r.progress(c.ID).State)
}

// Complaint 7: the rate is what was asked for, and progress says that it is the limit.
func TestRateIsTheOneThatWasAskedFor(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	c := r.draftOf(2000, func(req *api.CreateCampaign) { req.Send.MaxRatePerSecond = 50 })
	_, err := r.Start(ctx, "default", c.ID)
	require.NoError(t, err)
	second := func() (n int) {
		for range 50 {
			r.round(ctx)
			n += r.deliver(5000, delivered)
			r.pass(20 * time.Millisecond)
		}
		return n
	}
	require.InDelta(t, 50, second(), 3)
	require.InDelta(t, 50, second(), 1)
	require.Equal(t, "campaign.max_rate_per_second", r.progress(c.ID).LimitedBy)

	_, err = r.Pause(ctx, "default", c.ID)
	require.NoError(t, err)
	r.pass(time.Hour)
	require.Zero(t, second())
	_, err = r.Resume(ctx, "default", c.ID)
	require.NoError(t, err)
	require.InDelta(t, 50, second(), 11, "an hour of pause gives no burst")

	now, err := r.Get(ctx, "default", c.ID)
	require.NoError(t, err)
	send := now.Send
	send.MaxRatePerSecond = 500
	_, err = r.Patch(ctx, "default", c.ID, now.ETag, &api.PatchCampaign{Send: &send})
	require.NoError(t, err)
	require.InDelta(t, 500, second(), 60, "a change of the rate takes effect at once")
}

// listmonk 2094: a second campaign does not wait until the first has ended.
func TestSecondCampaignIsNotStarved(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(c *Config) { c.PageSize = 10 })
	ctx := t.Context()
	first, second := r.draftOf(500), r.draftOf(500)
	for _, c := range []api.Campaign{first, second} {
		_, err := r.Start(ctx, "default", c.ID)
		require.NoError(t, err)
	}
	for range 5 {
		r.round(ctx)
	}
	got := map[string]int{}
	r.deliver(1000, func(msg []byte, e *spool.Envelope) spool.Result {
		got[e.Queue.Stream]++
		return delivered(msg, e)
	})
	require.Positive(t, got[first.ID])
	require.Positive(t, got[second.ID])
}

func TestNobodyIsSentToInTheirQuietHours(t *testing.T) {
	t.Parallel()
	r := newRig(t) // 09:00 UTC is 18:00 in Seoul
	ctx := t.Context()
	_, err := r.SetCompliance(ctx, "default", &api.Compliance{QuietHours: true})
	require.NoError(t, err)
	req := request(
		api.Recipient{Email: "seoul@a.example", Attributes: map[string]any{"Name": "S"}},
		api.Recipient{Email: "york@a.example", Attributes: map[string]any{"Name": "Y", "timezone": "America/New_York"}}, // 04:00
	)
	c, err := r.Create(ctx, "default", req)
	require.NoError(t, err)
	r.fan()
	got := map[string]string{}
	note := func(msg []byte, e *spool.Envelope) spool.Result {
		got[e.To.Local] = r.now().Format("15:04")
		return delivered(msg, e)
	}
	r.deliver(10, note)
	require.Equal(t, map[string]string{"seoul": "09:00"}, got)
	for range 5 {
		r.pass(time.Hour)
		r.fan()
		r.deliver(10, note)
	}
	require.Equal(t, map[string]string{"seoul": "09:00", "york": "13:00"}, got, "at 08:00 in New York")
	require.Equal(t, Completed, r.progress(c.ID).State)
}

// What is queued when the night begins, or is tried again in it, waits at the gate.
func TestGateHoldsBackAtNight(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	_, err := r.SetCompliance(ctx, "default", &api.Compliance{QuietHours: true})
	require.NoError(t, err)
	c, err := r.Create(ctx, "default", request(to("ann@a.example", "Ann")))
	require.NoError(t, err)
	r.fan()
	id, err := parseID(c.ID)
	require.NoError(t, err)
	m, e := &spool.Message{ID: id, Account: "default", Campaign: c.ID}, &spool.Envelope{Data: snapshot(r.now(), "\x00")}
	_, until, err := r.Blocked(ctx, m, e)
	require.NoError(t, err)
	require.Zero(t, until)
	r.pass(4 * time.Hour) // 22:00 in Seoul
	_, until, err = r.Blocked(ctx, m, e)
	require.NoError(t, err)
	require.Equal(t, "2026-11-20 23:00", until.UTC().Format("2006-01-02 15:04"))
	require.Equal(t, "quiet_hours", r.progress(c.ID).LimitedBy)
}

func TestQuietHoursAreATimeOfDay(t *testing.T) {
	t.Parallel()
	seoul, err := (&zones{}).find("Asia/Seoul")
	require.NoError(t, err)
	for _, one := range []struct{ from, until, at, want string }{
		{"21:00", "08:00", "20:59:59", ""},
		{"21:00", "08:00", "21:00:00", "+08:00"},
		{"21:00", "08:00", "23:59:59", "+08:00"},
		{"21:00", "08:00", "00:00:00", "08:00"},
		{"21:00", "08:00", "07:59:59", "08:00"},
		{"21:00", "08:00", "08:00:00", ""},
		{"12:00", "13:30", "12:30:00", "13:30"},
		{"12:00", "13:30", "11:59:59", ""},
		{"12:00", "13:30", "13:30:00", ""},
	} {
		from, err := clockOf(one.from)
		require.NoError(t, err)
		until, err := clockOf(one.until)
		require.NoError(t, err)
		at, err := time.ParseInLocation("2006-01-02 15:04:05", "2026-11-20 "+one.at, seoul)
		require.NoError(t, err)
		got := (&quiet{from, until, seoul}).after(at, nil)
		want := at
		switch len(one.want) {
		case 5:
			want, err = time.ParseInLocation("2006-01-02 15:04", "2026-11-20 "+one.want, seoul)
		case 6:
			want, err = time.ParseInLocation("2006-01-02 15:04", "2026-11-21 "+one.want[1:], seoul)
		}
		require.NoError(t, err)
		require.True(t, want.Equal(got), "%v: %s", one, got)
	}
}

// TestG10_QuietHoursOverAChangeOfSummerTime: whatever the minute, nothing waits for a time that is over, nor for longer than
// a night.
func TestG10_QuietHoursOverAChangeOfSummerTime(t *testing.T) {
	t.Parallel()
	berlin, err := (&zones{}).find("Europe/Berlin")
	require.NoError(t, err)
	for _, q := range []quiet{
		{21 * time.Hour, 8 * time.Hour, berlin}, {22 * time.Hour, 2*time.Hour + 30*time.Minute, berlin}, {time.Hour, 2*time.Hour + 15*time.Minute, berlin},
	} {
		longest := (q.until - q.from + 24*time.Hour) % (24 * time.Hour)
		for _, day := range []time.Time{time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC), time.Date(2026, 10, 24, 12, 0, 0, 0, time.UTC)} {
			for at := day; at.Before(day.Add(24 * time.Hour)); at = at.Add(time.Minute) {
				until := q.after(at, nil)
				require.False(t, until.Before(at), "%s: %s", at.In(berlin), until.In(berlin))
				require.LessOrEqual(t, until.Sub(at), longest+time.Hour, "%s", at.In(berlin))
				require.True(t, q.after(until, nil).Equal(until), "%s: it is over then", at.In(berlin))
			}
		}
	}
}

func TestLabelAndFooterAreInEveryMessage(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	ctx := t.Context()
	_, err := r.SetCompliance(ctx, "default", &api.Compliance{
		AdLabel: true, SenderName: "Shop & Co <Ltd>", PostalAddress: "1 Teheran-ro\nSeoul", Contact: "+82 2 123",
	})
	require.NoError(t, err)
	c, err := r.Create(ctx, "default", request(to("ann@a.example", "Ann")))
	require.NoError(t, err)
	p, err := r.Preview(ctx, "default", c.ID, &api.PreviewCampaign{Data: map[string]any{"Name": "Ann"}})
	require.NoError(t, err)
	require.Equal(t, "(광고) Black Friday for Ann", p.Subject)
	require.Contains(t, p.HTML, "Shop &amp; Co &lt;Ltd&gt;<br>1 Teheran-ro<br>Seoul<br>+82 2 123</p></body>")
	require.Contains(t, p.Text, "1 Teheran-ro")

	// The rules of the start hold to the end.
	_, err = r.SetCompliance(ctx, "default", &api.Compliance{})
	require.NoError(t, err)
	p, err = r.Preview(ctx, "default", c.ID, &api.PreviewCampaign{Data: map[string]any{"Name": "Ann"}})
	require.NoError(t, err)
	require.Equal(t, "(광고) Black Friday for Ann", p.Subject)
}

func TestComplianceRefuses(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for pointer, in := range map[string]api.Compliance{
		"/postal_address": {PostalAddress: "{{Name}}"},
		"/sender_name":    {SenderName: "a\x00b"},
		"/quiet_from":     {QuietHours: true, QuietFrom: "25:00"},
		"/quiet_until":    {QuietHours: true, QuietFrom: "08:00", QuietUntil: "08:00"},
		"/timezone":       {QuietHours: true, Timezone: "Asia/Nowhere"},
	} {
		_, err := r.SetCompliance(t.Context(), "default", &in)
		requireInvalid(t, err, api.CodeInvalidParameter, pointer)
	}
	got, err := r.Compliance(t.Context(), "default")
	require.NoError(t, err)
	require.Zero(t, got, "what was refused changed nothing")
}

func FuzzZone(f *testing.F) {
	for _, s := range []string{"Asia/Seoul", "+09:00", "../x", "", "Local", "\x00"} {
		f.Add(s)
	}
	z := &zones{}
	f.Fuzz(func(t *testing.T, s string) {
		loc, err := z.find(s)
		require.Equal(t, err == nil, loc != nil, "%q", s)
	})
}
