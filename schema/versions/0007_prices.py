"""Prices of other sources: a list by the provider, a file of the user's, web searches, and rows that no longer hold."""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade():
    op.execute(PRICES)


PRICES = """
-- Of the prices that hold on a day, those of the highest rank do: 0 a public list, 1 those that come with autovibe,
-- 2 the user's own file.
ALTER TABLE prices ADD COLUMN rank SMALLINT NOT NULL DEFAULT 1 CHECK (rank BETWEEN 0 AND 2);
-- When its source took it back; ledger lines refer to it still.
ALTER TABLE prices ADD COLUMN retired_at TIMESTAMPTZ;
-- USD per thousand web searches; without it a call with searches is settled at its bound.
ALTER TABLE prices ADD COLUMN usd_web_search NUMERIC(24,9) CHECK (usd_web_search >= 0 AND usd_web_search <> 'NaN');
UPDATE prices SET usd_web_search = 10 WHERE provider = 'anthropic';
ALTER TABLE prices DROP CONSTRAINT prices_provider_model_effective_from_tier_above_tokens_key;
CREATE UNIQUE INDEX prices_one_that_holds ON prices (provider, model, effective_from, tier_above_tokens, rank)
    WHERE retired_at IS NULL;
-- A price that a ledger line may refer to stays what it was.
CREATE FUNCTION refuse_price_change() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND (to_jsonb(NEW) - 'retired_at') = (to_jsonb(OLD) - 'retired_at') THEN
        RETURN NEW;
    END IF;
    RAISE EXCEPTION 'a price is never changed: % refused', TG_OP
        USING ERRCODE = 'restrict_violation', HINT = 'Retire it and add a new one.';
END;
$$;
CREATE TRIGGER refuse_price_change BEFORE UPDATE OR DELETE ON prices
    FOR EACH ROW EXECUTE FUNCTION refuse_price_change();
"""
