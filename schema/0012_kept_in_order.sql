-- What is kept has the order of its positions: the parts of a transaction that was split have
-- higher numbers than what follows them.
create index kept_by_position on kept (appservice_id, first_position);
